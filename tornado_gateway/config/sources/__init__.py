"""The sources of values: flags, environment variables and env files. `load` reads them and reports all problems.

Only this package knows the grammar of env files, and which foreign variables are probably misspelt options.
"""
