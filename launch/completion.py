"""Prints shell completion for all commands: options, their choices, run names; for bash and zsh.

examples:
  source <(python launch/completion.py)          in ~/.bashrc or ~/.zshrc
"""

import argparse
import importlib
import shlex

import checkout

from launch.submit import runs

COMMANDS = (
    *("prepare", "train", "evaluate", "infer", "export"),
    *("status", "logs", "cancel", "report", "clean", "doctor", "track"),
)

# `python launch/X.py` is completed as an argument of python: only if the script is one of ours, and with
# bash's own file completion for everything else.
SCRIPT = """\
# Completion of Baton's commands. zsh runs bash's completions after this line:
[ -n "${{ZSH_VERSION:-}}" ] && autoload -Uz bashcompinit && bashcompinit
_baton_root={runs}
# Only what is a run's name: in a shared folder of runs others make the names, and a shell would execute them.
_baton_runs() {{
  local run LC_ALL=C
  for run in "${{BATON_RUNS:-$_baton_root}}"/*/run.yaml; do
    run=${{run%/run.yaml}} && run=${{run##*/}}
    case $run in *[!A-Za-z0-9._+=@-]* | [!A-Za-z0-9]*) continue ;; esac
    [ -e "${{BATON_RUNS:-$_baton_root}}/$run/run.yaml" ] && echo "$run"
  done
}}
_baton() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} script= words= one
  local i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${{COMP_WORDS[i]}} in launch/*.py | */launch/*.py) script=${{COMP_WORDS[i]##*/}} ;; esac
  done
  case $script,$before in
{choices}
  *)
    case $script in
{options}
    *) return ;;
    esac
    case $word in -*) ;; *) words= ;; esac
    case $script,$word in
    *,-* | prepare.py,* | train.py,* | doctor.py,*) ;;
    *) words=$(_baton_runs) ;;
    esac
    case $before in --resume | --compare) words=$(_baton_runs) ;; esac
    ;;
  esac
  # Not compgen -W, which expands its words.
  COMPREPLY=()
  for one in $words; do
    case $one in "$word"*) COMPREPLY+=("$one") ;; esac
  done
}}
complete -o default -F _baton python python3
"""


class _Captured(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(script(), end="")


def script() -> str:
    """The completion script, made from the commands' own parsers."""
    options, choices = [], []
    for command in COMMANDS:
        named = [action for action in parser_of(command)._actions if action.option_strings]
        words = " ".join(string for action in named for string in action.option_strings)
        options.append(f'    {command}.py) words="{words}" ;;')
        for action in named:
            if action.choices:
                pattern = " | ".join(f"{command}.py,{string}" for string in action.option_strings)
                choices.append(f'  {pattern}) words="{" ".join(map(str, action.choices))}" ;;')
    return SCRIPT.format(
        runs=shlex.quote(str(runs.runs_root())), options="\n".join(options), choices="\n".join(choices)
    )


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command's `main` builds, caught when it is about to parse."""
    module = importlib.import_module(f"launch.{command}")
    before = argparse.ArgumentParser.parse_args

    def caught(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Captured(self)

    argparse.ArgumentParser.parse_args = caught  # type: ignore[method-assign,assignment]
    try:
        module.main()
    except _Captured as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_args = before  # type: ignore[method-assign]
    raise AssertionError(f"launch/{command}.py parses no arguments")


if __name__ == "__main__":
    checkout.run(main)
