"""Programs that use qorb, as mypy --strict and basedpyright see them; run as tests, too."""
