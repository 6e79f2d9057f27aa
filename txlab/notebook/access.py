"""How clients reach the lab: in this kernel, in a terminal, and from outside a JupyterHub."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from txlab.notebook.sdk_environment import proxy_exports
from txlab.notebook.served import LabPart
from txlab.notebook.texts import Text

KEY_LINE = 'export TINKER_API_KEY="$(txlab key)"'
NO_KEY_LINE = "# TINKER_API_KEY is lab.api_key: it could not be written where txlab key looks for it, see %txlogs"


class Access(LabPart):
    """The addresses of the lab."""

    url: str  # on this machine
    api_key: str
    _key_is_kept: bool = True  # in the file that ``txlab key`` reads

    @property
    def port(self) -> int | None:
        """The port that the lab listens on; None before it has one."""
        return urlsplit(self.url).port

    @property
    def proxy_path(self) -> str | None:
        """The lab's path on the JupyterHub (``/user/ann/proxy/40123``); None where there is no hub.

        jupyter-server-proxy serves it. The hub wants a token of its own beside the lab's key.
        """
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        return f"{prefix.rstrip('/')}/proxy/{self.port}" if prefix and self.url else None

    def exports(self) -> Text:
        """Shell lines that point a terminal's Tinker programs to this lab.

        They may be shown to anyone: ``txlab key`` prints the key to the user whose lab it is.
        """
        lines = [f"export TINKER_BASE_URL={self.url}", KEY_LINE if self._key_is_kept else NO_KEY_LINE]
        lines.append(proxy_exports(self.url))
        if self.proxy_path is not None:
            lines += [
                f"# From outside this hub: base_url={_on_hub(self.proxy_path)!r} and, for the hub itself,",
                '# default_headers_overrides={"Authorization": "token <a token of the hub>"} of tinker.ServiceClient',
            ]
        return Text("\n".join(lines))


def _on_hub(path: str) -> str:
    """The whole address, as far as the hub tells it."""
    public = os.environ.get("JUPYTERHUB_PUBLIC_URL")  # of this user's server; set where the hub knows its own address
    if not public:
        return f"https://<the hub>{path}"
    address = urlsplit(public)
    return f"{address.scheme}://{address.netloc}{path}"
