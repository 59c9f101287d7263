"""Pages for questions about decisions that take longer than one request should. Used by `console.pages`."""
