"""What others must not read: keys of services, passwords, a webhook's address.

A job gets one through a file of the user's (`secrets:` in the profile, `webhook_file:` below `notify:`) or a
variable of the submitting shell. Secrets that are written in a profile nevertheless are kept in files that
only their owner can read, and shown nowhere.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from jobs.run.errors import UserError

_WORDS = {"TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY", "CREDENTIALS"}
_PAIRS = ("API_KEY", "ACCESS_KEY", "SECRET_KEY", "PRIVATE_KEY", "AUTH_KEY")


def looks_secret(name: str) -> bool:
    """Whether a variable or setting of that name probably holds a secret: WANDB_API_KEY, hf_token."""
    upper = re.sub(r"[^A-Z0-9]+", "_", name.upper())
    return bool(_WORDS & set(upper.split("_"))) or any(pair in upper for pair in _PAIRS)


def in_text(text: str) -> str:
    """The name of the first secret that a shell line or option sets to a literal value; "" if there is none.
    `KEY=$(cat file)` and `KEY=$OTHER` do not."""
    # The value is only looked at: in `--env=KEY=abc`, it holds the name.
    for name, value in re.findall(r"([A-Za-z_][A-Za-z0-9_]*)=(?=([^\s,]*))", text):
        if looks_secret(name) and not value.strip("'\"").startswith(("$", "`")) and value.strip("'\""):
            return str(name)
    return ""


def read(path: str | os.PathLike[str], what: str) -> str:
    """The content of a file with a secret, without the final line break. Raises UserError unless it can be
    read, by its owner only, and has exactly one line."""
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
        content = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{what}: {file} cannot be read: {reason}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"{what}: others can read {file}: chmod 600 {file}")
    if not content or any(ord(character) < 32 or ord(character) == 127 for character in content):
        raise UserError(f"{what}: {file} must hold one line with nothing but the secret")
    return content


def typed(option: str) -> UserError:
    """The error for a secret that was typed on a command line."""
    return UserError(
        f"{option}: a secret does not belong on a command line, which others can see and the report shows: "
        "give it as an environment variable of the job (`secrets` in the profile)"
    )
