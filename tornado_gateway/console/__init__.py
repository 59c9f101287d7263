"""Pages for operators: console, API description, administration.

Only this room knows tornado.web and who may see what. Used by `process`.
"""
