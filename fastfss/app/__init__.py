"""The web server and its page: `fastfss serve`. Needs the extra "app"."""
