"""Several environments, those of ENVIRONMENTS_FILE, and the one that a request means.

A request can name one in several places: an SDK key in a header or in the query, a name, an account, and the documents
of events. The first place in this order decides, and the others must agree, because a request that names two
environments is a mistake in a configuration. A request that names none belongs to the environment of its host name, or
to the default one. A wrong key costs a look-up and never a request to VWO. See docs/environments.md.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import final

from tornado_gateway.environments.client_tokens import ClientToken
from tornado_gateway.environments.environment import Environment
from tornado_gateway.environments.registry import (
    ACCOUNT_PARAMETERS,
    KEY_HEADERS,
    KEY_PARAMETERS,
    KNOWN_REQUESTS,
    LONGEST_KNOWN,
    LOOKUP_ACCOUNT_PARAMETERS,
    LOOKUP_KEY_PARAMETERS,
    Claim,
    Environments,
    Scope,
    bare,
    no_key,
    wrong_account,
)
from tornado_gateway.errors import RequestError
from tornado_gateway.http.fields import printable, query_text
from tornado_gateway.http.messages import Request
from tornado_gateway.logs import ThrottledLog
from tornado_gateway.settings.mirror import Snapshot

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)
NAME_PARAMETER, NAME_HEADER = b"environment", b"x-fme-environment"
SHOWN = {b"authorization": "Authorization", b"x-api-key": "X-API-Key", NAME_HEADER: "X-FME-Environment"}
QUESTION = "which environment? name it by SDK key, X-FME-Environment or host"


@final
class _Known:
    """The environment of a request that was seen before. `tally` counts requests with its SDK key, at `place`.

    `number` is its own in this process, so that what was found by another version of the file is not found again.
    """

    __slots__ = ("environment", "number", "place", "tally")

    def __init__(self, environment: Environment, tally: list[int], place: int) -> None:
        self.environment = environment
        self.number = next(_numbers)
        self.tally = tally
        self.place = place


@final
class SeveralEnvironments(Environments):
    """The environments of ENVIRONMENTS_FILE.

    `on_unidentified` is called with each request that names no environment while there is no default one.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        *,
        needs_key: bool = False,
        on_unidentified: Callable[[Request], None],
    ) -> None:
        self._on_unidentified = on_unidentified
        super().__init__(environments, needs_key=needs_key)

    def replace(self, environments: Sequence[Environment]) -> None:
        super().replace(environments)
        self._by_key = {key: one for one in environments for key in one.access.sdk_keys}
        self._by_raw_key = {key.encode(): one for key, one in self._by_key.items()}
        self._by_host = {host.encode(): one for one in environments for host in one.access.hosts}
        self._known: dict[bytes, _Known] = {}
        self._by_number: dict[int, _Known] = {}  # the same, by the memo of known heads
        self._lists: dict[str, tuple[Snapshot, frozenset[str]]] = {}
        self._log = ThrottledLog(logger, 3600)  # warns again after a change of the file

    def settings_changed(self, snapshot: Snapshot) -> None:
        """Do nothing: accounts and keys are those of the file."""

    # --- Requests ---

    def of(self, request: Request) -> Environment:
        if request.client is not None and token_of(request) is not None:
            return self._of_unknown(request)
        head = request.known_head
        found = None if head is None else self._by_number.get(head.memo)
        if found is None:
            found = self._of_carried(request)
            if head is not None:
                head.memo = found.number
        found.tally[found.place] += 1
        return found.environment

    def _of_carried(self, request: Request) -> _Known:
        carried = self._carried(request)
        found = self._known.get(carried)
        if found is None:
            found = self._found(request)
            self._remember(carried, found)
        return found

    def _found(self, request: Request) -> _Known:
        environment, key = self._of_unknown(request), self._key_of(request)
        owner = None if key is None else self._by_key.get(key)
        tally = [0] if owner is None else owner.counts.keys
        return _Known(environment, tally, self._place_of(owner, key))

    def _key_of(self, request: Request, parameters: Sequence[bytes] = KEY_PARAMETERS) -> str | None:
        """Return the SDK key in the query or in a header."""
        for parameter in parameters:
            if (key := query_text(request.query, parameter)) is not None:
                return key
        return self._key_of_headers(request)

    def _key_of_headers(self, request: Request) -> str | None:
        values = [value for header in KEY_HEADERS if (value := request.header(header)) is not None]
        return next((bare(value).decode("latin-1") for value in values if bare(value) in self._by_raw_key), None)

    def _place_of(self, owner: Environment | None, key: str | None) -> int:
        return 0 if owner is None or key == owner.access.sdk_key else 1

    def _count(self, key: str | None) -> None:
        owner = None if key is None else self._by_key.get(key)
        if owner is not None:
            owner.counts.keys[self._place_of(owner, key)] += 1

    def of_lookup(
        self, request: Request, list_id: str | None = None, *, without_key: bool = False
    ) -> Environment | None:
        if self.needs_key and not without_key and not self.has_key(request, is_lookup=True):
            raise no_key()
        claim = self._named(request, LOOKUP_KEY_PARAMETERS)
        if claim is not None:
            self._count(self._key_of(request, LOOKUP_KEY_PARAMETERS))
            return claim.environment
        account = _account(request.query, LOOKUP_ACCOUNT_PARAMETERS)
        own = self._of_account(request, account)
        found = own or (None if list_id is None else self._of_list(request, account, list_id))
        found = found or self._otherwise(request, account)
        if found is None:
            self._note(request)
        return found

    def named_by(self, request: Request) -> Environment | None:
        try:
            claim = self._named(request)
        except RequestError:
            return None
        return None if claim is None else claim.environment

    def _of_unknown(self, request: Request) -> Environment:
        if self.needs_key and not self.has_key(request):
            raise no_key()
        claim, account = self._named(request), _account(request.query)
        if account is not None and not (_has_one_account(request.query, account) and self._is_served(account, claim)):
            raise wrong_account()
        if claim is not None:
            return claim.environment
        return self._of_account(request, account) or self._otherwise(request, account) or self._reject(request)

    def _carried(self, request: Request) -> bytes:
        """Return all that can change the result: the query, and the headers that name an environment."""
        carried, has_hosts = request.query, bool(self._by_host)
        for name, value in request.headers:
            size = len(name)
            if size in (9, 13, 17) or (size == 4 and has_hosts):
                carried = self._with_header(carried, name.lower(), value)
        return carried

    def _with_header(self, carried: bytes, name: bytes, value: bytes) -> bytes:
        if name == b"host" or name == NAME_HEADER or (name in KEY_HEADERS and bare(value) in self._by_raw_key):
            return b"%b\n%b:%b" % (carried, name, value)
        return carried

    def _remember(self, carried: bytes, found: _Known) -> None:
        if len(carried) <= LONGEST_KNOWN:
            if len(self._known) >= KNOWN_REQUESTS:  # some clients add a random parameter; others are known again soon
                self._known, self._by_number = {}, {}
            self._known[carried] = self._by_number[found.number] = found

    # --- The places, in the order in which they decide ---

    def _named(self, request: Request, parameters: Sequence[bytes] = KEY_PARAMETERS) -> Claim | None:
        """Return the environment that a key or a name in a request means. Raise RequestError 400 for several."""
        keys = (*self._by_key_header(request), *self._by_key_parameter(request, parameters))
        claim = _agreed([*self._by_token(request), *keys, *self._by_names(request)])
        if claim is not None:
            _check_token(request, claim.environment)
        return claim

    def _by_token(self, request: Request) -> Iterator[Claim]:
        """Yield the environment of a token of one."""
        token = token_of(request)
        if token is not None and len(token.environments) == 1:
            yield Claim(self._of_token(token), "the token")

    def _of_token(self, token: ClientToken) -> Environment:
        """Return the first environment of a token that is still served."""
        found = next((self._by_name[name] for name in token.environments if name in self._by_name), None)
        if found is None:
            raise RequestError(403, "the environments of this token are not served")
        return found

    def _by_key_header(self, request: Request) -> Iterator[Claim]:
        """Yield the owners of SDK keys. Other values, such as tokens of a proxy, mean nothing here."""
        for header in KEY_HEADERS:
            value = request.header(header)
            if value is not None and (owner := self._by_raw_key.get(bare(value))) is not None:
                yield Claim(owner, SHOWN[header])

    def _by_key_parameter(self, request: Request, parameters: Sequence[bytes]) -> Iterator[Claim]:
        for parameter in parameters:
            key = query_text(request.query, parameter)
            if key is not None:
                if key not in self._by_key:
                    raise wrong_account()
                yield Claim(self._by_key[key], parameter.decode())

    def _by_names(self, request: Request) -> Iterator[Claim]:
        header = request.header(NAME_HEADER)
        given = {
            NAME_PARAMETER.decode(): query_text(request.query, NAME_PARAMETER),
            SHOWN[NAME_HEADER]: None if header is None else header.decode("latin-1").strip() or None,
        }
        for place, name in given.items():
            if name is not None:
                if name not in self._by_name:
                    raise RequestError(
                        400, f"this gateway has no environment {printable(name, 32)}", code="unknown_environment"
                    )
                yield Claim(self._by_name[name], place)

    def _of_account(self, request: Request, account: str | None) -> Environment | None:
        """Return the only environment of an account that the request's token allows, None if there are several."""
        if account is None:
            return None
        own = [one for one in self.all if one.access.account_id == account]
        allowed = [one for one in own if _allows(token_of(request), one)]
        if own and not allowed:
            _check_token(request, own[0])
        return allowed[0] if len(allowed) == 1 else None

    def has_key(self, request: Request, is_lookup: bool = False) -> bool:
        parameters = LOOKUP_KEY_PARAMETERS if is_lookup else KEY_PARAMETERS
        return any(True for _ in (*self._by_key_header(request), *self._by_key_parameter(request, parameters)))

    def _of_list(self, request: Request, account: str | None, list_id: str) -> Environment | None:
        """Return an environment whose settings mention a list; None if several accounts do.

        Lists belong to accounts, so any environment of the account will do; that of the host is preferred.
        """
        token = token_of(request)
        served = [one for one in self.all if account is None or one.access.account_id == account]
        mentioning = [one for one in served if _allows(token, one) and list_id in self._lists_of(one)]
        if len({one.access.account_id for one in mentioning}) != 1:
            return None
        preferred = self._otherwise(request, account)
        return preferred if preferred in mentioning else mentioning[0]

    def _lists_of(self, environment: Environment) -> frozenset[str]:
        snapshot, name = environment.mirror.current, environment.access.name
        if snapshot is None:
            return frozenset()
        known = self._lists.get(name)
        if known is None or known[0] is not snapshot:
            features = snapshot.settings.features.values()
            known = snapshot, frozenset(check[1] for feature in features for check in feature.list_checks)
            self._lists[name] = known
        return known[1]

    def _otherwise(self, request: Request, account: str | None = None) -> Environment | None:
        """Return the environment of a host name, or the default one, unless it is of another account."""
        found, token = self._of_host(request) or self.default, token_of(request)
        if token is not None and (found is None or not _allows(token, found)):
            found = self._of_token(token)
        return found if found is None or account is None or found.access.account_id == account else None

    def _of_host(self, request: Request) -> Environment | None:
        host = request.header(b"host") if self._by_host else None
        if host is None:
            return None
        name, colon, port = host.rpartition(b":")
        name = name if colon and port.isdigit() else host
        return self._by_host.get(name.strip(b"[]").rstrip(b".").lower())

    def _is_served(self, account: str, claim: Claim | None) -> bool:
        """Return whether the account is that of the named environment, or of any one if none is named."""
        if claim is not None:
            return claim.environment.access.account_id == account
        return any(one.access.account_id == account for one in self.all)

    def _reject(self, request: Request) -> Environment:
        self._note(request)
        raise RequestError(400, QUESTION, code="environment_required")

    def _note(self, request: Request) -> None:
        self._on_unidentified(request)
        path = printable(request.path.decode("latin-1"), 100)
        self._log.warning("unidentified", "%s got no result: it named no environment, and none is the default", path)

    # --- Events ---

    def scope_of(self, request: Request, *, has_header: bool = False) -> Scope:
        """Return what the query and the headers say. A key that is not served here is no error: see `of_event`."""
        query = request.query
        key = query_text(query, b"env") or query_text(query, b"sdkKey") or query_text(query, b"i")
        otherwise = self._otherwise(request)
        if key is not None and key not in self._by_key:
            return Scope(otherwise or self.all[0], key, None, otherwise, request)
        claim = self._named(request)
        self._count(key if key is not None or claim is None else self._key_of(request))
        if claim is None and (own := self._of_account(request, _account(query))) is not None:
            claim = Claim(own, "account")
        counting = otherwise or self.all[0] if claim is None else claim.environment
        return Scope(counting, key, claim, otherwise, request, fallback_key=self._key_of_headers(request))

    def of_event(self, scope: Scope, key: str | None) -> Environment | None:
        """Return the environment of an event, None if the key of the query or of the document is not served here.

        If the query has a key, that of the document may be unknown.
        """
        if scope.key is not None and scope.named is None:
            return None
        own = None if key is None else self._by_key.get(key)
        if own is None and key is not None and scope.key is None:
            return None
        if scope.named is None:
            self._count(key)
        claims = [] if scope.named is None else [scope.named]
        agreed = _agreed(claims if own is None else [*claims, Claim(own, "the event")])
        if agreed is not None:
            if scope.request is not None:
                _check_token(scope.request, agreed.environment)
            return agreed.environment
        if scope.otherwise is None and scope.request is not None:
            self._reject(scope.request)
        return scope.otherwise

    def of_usage_statistics(self, scope: Scope, key: str | None) -> Environment:
        """Return the environment of a key that is served here, otherwise any."""
        own = None if key is None or scope.named is not None else self._by_key.get(key)
        return own or scope.counting


def token_of(request: Request) -> ClientToken | None:
    """Return the token of a request if it is for some environments only."""
    token = request.client
    return token if isinstance(token, ClientToken) and token.environments else None


def _allows(token: ClientToken | None, environment: Environment) -> bool:
    return token is None or environment.access.name in token.environments


def _check_token(request: Request, environment: Environment) -> None:
    """Raise RequestError for a token of other environments."""
    if not _allows(token_of(request), environment):
        raise RequestError(403, f"this token may not be used in environment {environment.access.name}")


def _agreed(claims: Sequence[Claim]) -> Claim | None:
    """Return the first claim, None if there is none. Raise RequestError 400 if another one contradicts it."""
    for claim in claims:
        first = claims[0]
        if claim.environment is not first.environment:
            names = first.environment.access.name, claim.environment.access.name
            raise RequestError(
                400,
                f"the request names two environments: {names[0]} ({first.place}) and {names[1]} ({claim.place})",
                code="ambiguous_environment",
            )
    return claims[0] if claims else None


def _account(query: bytes, parameters: Sequence[bytes] = ACCOUNT_PARAMETERS) -> str | None:
    """Return the account in a query, None if there is none."""
    for parameter in parameters:
        account = query_text(query, parameter)
        if account is not None:
            return account
    return None


def _has_one_account(query: bytes, account: str) -> bool:
    return all(query_text(query, parameter) in (None, account) for parameter in ACCOUNT_PARAMETERS)
