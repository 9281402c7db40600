"""Prints pip's settings as `export` lines of uv's variables: index, extra indexes, folders of wheels,
certificates, proxy. uv does not read pip's configuration, often the only place that names a site's mirror.

    eval "$(python env/pip_settings.py)"

pip's files and PIP_* variables are read with `pip config list`; variables that are already set are left
alone, except SSL_CERT_FILE. Sources: https://pip.pypa.io/en/stable/topics/configuration/ and
https://docs.astral.sh/uv/reference/environment/
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys

UV = {
    # pip's option: (uv's variables, separator of several values)
    "index-url": (("UV_DEFAULT_INDEX",), " "),
    "extra-index-url": (("UV_INDEX",), " "),
    "find-links": (("UV_FIND_LINKS",), ","),
    "trusted-host": (("UV_INSECURE_HOST",), " "),
    "cert": (("SSL_CERT_FILE",), " "),
    "client-cert": (("SSL_CLIENT_CERT",), " "),
    "proxy": (("HTTPS_PROXY", "HTTP_PROXY"), " "),
    "timeout": (("UV_HTTP_TIMEOUT",), " "),
}


def variables(listed: str) -> dict[str, str]:
    """uv's variables from the output of `pip config list`: lines such as global.index-url='https://…'."""
    options: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # later sections win
        for line in listed.splitlines():
            key, equals, value = line.partition("=")
            if equals and key.startswith(f"{section}."):
                options[key.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    # As pip does: the best version of all indexes, not the first index that has the package.
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, (names, separator) in UV.items():
        if values := options.get(option, "").split():
            found |= dict.fromkeys(names, separator.join(values))
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        found["UV_NO_INDEX"] = "1"
    return found


def main() -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, value in variables(listed).items():
        # pip's `cert` wins: SSL_CERT_FILE may have been set for other programs.
        if name == "SSL_CERT_FILE" or name not in os.environ:
            print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
