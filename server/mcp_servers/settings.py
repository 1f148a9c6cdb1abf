"""Which MCP servers there are, as an operator lists them in the file that MCP_SERVERS names."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from chatkit_grpc.environment import SettingsError, check_http_url, is_plaintext_url, read_file
from environs import ValidationError as NotAUrl
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

SETTING = "MCP_SERVERS"

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TABLE = "mcpServers"
"""What the table of servers is called in the files of other clients of MCP too."""

Seconds: TypeAlias = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
ServerName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class _Server(BaseModel):
    """What servers of all kinds have.

    forward_user: whether the server is told in a call's metadata for which user it is.
    allowed_tools: the tools that are offered; None for all. blocked_tools: those of them that aren't.
    max_tools: how many are offered at most.
    max_result_characters: how much of a result the model is told at most.
    max_message_bytes: the largest message that the server may send; who sends a larger one is dropped.
    """

    # Strict: a number that is written as text is a slip that shall be told.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    call_timeout_seconds: Seconds = 30.0
    connect_timeout_seconds: Seconds = 10.0
    allowed_tools: list[str] | None = None
    blocked_tools: list[str] = []
    max_tools: Annotated[int, Field(ge=1, le=1000)] = 100
    max_result_characters: Annotated[int, Field(ge=100, le=10_000_000)] = 50_000
    max_message_bytes: Annotated[int, Field(ge=1024, le=2**28)] = 4 * 2**20
    forward_user: bool = False


class ChildSettings(_Server):
    """A server that is started as a child process and spoken to over its standard input and output.

    env: variables beside the few that it inherits (PATH, HOME and the like): it isn't told the server's own secrets.
    show_stderr: whether what it prints on standard error goes to the server's.
    """

    type: Literal["stdio"] = "stdio"
    command: str = Field(min_length=1)
    args: list[str] = []
    env: Annotated[dict[str, str], Field(repr=False)] = {}
    cwd: str | None = None
    show_stderr: bool = False

    @property
    def passes_authorization(self) -> bool:
        """Whether a user's token is passed on: a child process has no place for one."""
        return False


class HttpSettings(_Server):
    """A server at a URL that speaks streamable HTTP.

    headers: are sent with each request.
    pass_authorization: whether calls are made with the token of the user they are made for.
    """

    type: Literal["http", "streamable-http"] = "http"
    url: str
    headers: Annotated[dict[str, str], Field(repr=False)] = {}
    pass_authorization: bool = False

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        try:
            check_http_url(url)
        except NotAUrl as error:
            raise ValueError(str(error)) from None
        if not urlsplit(url).hostname:
            raise ValueError("expected a URL such as https://host/mcp")
        return url

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            # Not shown: it may be a secret.
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not (value.isascii() and value.isprintable()):
                raise ValueError(f"expected names and values of HTTP headers, {name[:40]!r} has none")
        return headers

    @model_validator(mode="after")
    def _keeps_tokens_safe(self) -> Self:
        if self.pass_authorization and is_plaintext_url(self.url):
            raise ValueError("pass_authorization: users' tokens would travel in plaintext: expected an https url")
        return self

    @property
    def passes_authorization(self) -> bool:
        """Whether a user's token is passed on."""
        return self.pass_authorization


def _kind(server: object) -> str | None:
    """By what a server has: no `type` is needed, as in the files of other clients."""
    if not isinstance(server, Mapping) or ("command" in server) == ("url" in server):
        return None
    return "command" if "command" in server else "url"


ServerSettings: TypeAlias = ChildSettings | HttpSettings
_Servers = TypeAdapter[dict[ServerName, ServerSettings]](
    dict[
        ServerName,
        Annotated[
            Annotated[ChildSettings, Tag("command")] | Annotated[HttpSettings, Tag("url")],
            Discriminator(
                _kind,
                custom_error_type="kind",
                custom_error_message="expected either a `command` or a `url`",
            ),
        ],
    ]
)


def read_mcp_servers(
    path: Path, environment: Mapping[str, str] = os.environ, *, taken: Collection[str] = ()
) -> dict[str, ServerSettings]:
    """The servers of a file by their names. Raises SettingsError, which names all that is wrong.

    path: of a .toml or .json file with a table `mcpServers`. `${NAME}` in its texts stands for a variable of the
        environment, so that no secret need stand in it.
    taken: names that are given already.
    """
    listed = _table_of(path)
    problems = [f"{path.name}: {name}: expected another name, that one is given" for name in listed if name in taken]
    filled = {
        name: _filled_in(server, environment, f"{path.name}: {name}", problems) for name, server in listed.items()
    }
    if not problems:
        try:
            return _Servers.validate_python(filled)
        except ValidationError as error:
            problems = [f"{path.name}: {_path(e['loc'])}: {_words(e)}" for e in error.errors(include_input=False)]
    raise SettingsError("\n".join(f"{SETTING}: {problem}" for problem in problems))


def _table_of(path: Path) -> dict[str, Any]:
    text = read_file(SETTING, path)
    try:
        loaded = json.loads(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        # Of JSON and TOML alike: where it is, and none of what stands there.
        where = re.search(r"line \d+,? column \d+", str(error))
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SettingsError(f"{SETTING}: expected {kind} in {path.name}{f', {where[0]}' if where else ''}") from None
    if not isinstance(loaded, dict) or list(loaded) != [_TABLE] or not isinstance(loaded[_TABLE], dict):
        raise SettingsError(f"{SETTING}: expected one table `{_TABLE}` in {path.name}")
    return dict(loaded[_TABLE])


def _filled_in(value: object, environment: Mapping[str, str], where: str, problems: list[str]) -> Any:
    """A value with the environment's variables in its texts."""
    match value:
        case str():
            missing = [name for name in _VARIABLE.findall(value) if name not in environment]
            problems += [f"{where}: the environment has no {name}" for name in missing]
            return _VARIABLE.sub(lambda found: environment.get(found[1], ""), value)
        case dict():
            return {k: _filled_in(member, environment, f"{where}.{k}", problems) for k, member in value.items()}
        case list():
            return [_filled_in(member, environment, where, problems) for member in value]
        case _:
            return value


def _path(location: tuple[int | str, ...]) -> str:
    """Where something is, without the tags of the union."""
    named = [str(part) for number, part in enumerate(location) if not (number == 1 and part in {"command", "url"})]
    return ".".join(named) or _TABLE


def _words(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    return message[0].lower() + message[1:]
