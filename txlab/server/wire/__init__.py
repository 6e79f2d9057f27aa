"""JSON bodies of the Tinker API, one module per resource, named as the routes are."""
