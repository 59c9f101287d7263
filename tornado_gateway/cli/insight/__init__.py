"""Commands about decisions and the state of a gateway: `simulate`, `verify` and `top`. Used by `cli.main`."""
