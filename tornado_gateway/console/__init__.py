"""Pages for operators: console, API description, administration.

Only this room knows tornado.web and the access rules of operators. Used by `process`.
"""
