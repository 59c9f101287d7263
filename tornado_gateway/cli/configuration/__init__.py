"""The commands that show and write a configuration: `config` and `init`. Used by `cli/main`."""
