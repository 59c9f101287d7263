"""The lines that initialize an SDK with this gateway. docs/sdks.md has all options."""

from collections.abc import Iterator

# In the key's place is the variable that holds it, because the line will be in a repository.
LINES = {
    "node": "const client = await init({ accountId: '%(account)s', sdkKey: process.env.SDK_KEY,"
    " gatewayService: { url: '%(url)s' } });",
    "python": 'client = init({"account_id": "%(account)s", "sdk_key": os.environ["SDK_KEY"],'
    ' "gateway_service": {"url": "%(url)s"}})',
    "go": 'instance, err := vwo.Init(map[string]interface{}{"accountId": %(account)s, "sdkKey": os.Getenv("SDK_KEY"),'
    ' "gatewayService": map[string]interface{}{"url": "%(url)s"}})',
    "java": 'options.setAccountId(%(account)s); options.setSdkKey(System.getenv("SDK_KEY"));'
    ' options.setGatewayService(new HashMap<>(Map.of("url", "%(url)s"))); VWO client = VWO.init(options);',
    "php": "$client = VWO::init(['accountId' => %(account)s, 'sdkKey' => getenv('SDK_KEY'),"
    " 'gatewayService' => ['url' => '%(url)s', 'isUrlNotSecure' => %(is_http)s]]);",
    "ruby": "client = VWO.init({ account_id: %(account)s, sdk_key: ENV['SDK_KEY'],"
    " gateway_service: { url: '%(url)s' } })",
    "dotnet": "var client = VWO.Init(new VWOInitOptions { AccountId = %(account)s,"
    ' SdkKey = Environment.GetEnvironmentVariable("SDK_KEY"),'
    ' GatewayService = new Dictionary<string, object> { { "url", "%(url)s" } } });',
}


def lines_for(account_id: int, url: str, sdk: str | None) -> Iterator[str]:
    """Yield the line of an SDK, or a table of all."""
    facts = {"account": account_id, "url": url, "is_http": "true" if url.startswith("http:") else "false"}
    if sdk is not None:
        yield LINES[sdk] % facts
        return
    for name, line in LINES.items():
        yield f"{name:<8}{line % facts}"
