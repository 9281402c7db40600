"""Tells uv what pip is told, as `export` lines for a shell: the index, further ones, folders of wheels,
certificates, a proxy. uv reads none of pip's configuration, and a site's mirror stands only there.

    eval "$(python env/pip_settings.py)"

What pip's own files and PIP_* variables say comes from `pip config list`; a variable of uv's that is set
already is left alone. Sources: https://pip.pypa.io/en/stable/topics/configuration/ and
https://docs.astral.sh/uv/reference/environment/
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys

UV = {
    # pip's option: (uv's variables, what stands between several values)
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
    """uv's variables from what `pip config list` prints: lines such as global.index-url='https://…'."""
    options: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the later wins
        for line in listed.splitlines():
            key, equals, value = line.partition("=")
            if equals and key.startswith(f"{section}."):
                options[key.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    # As pip does it: the best version of all places, not the first place that has the package.
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
        # pip's certificates are not the ones of SSL_CERT_FILE, which may be set for others.
        if name == "SSL_CERT_FILE" or name not in os.environ:
            print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
