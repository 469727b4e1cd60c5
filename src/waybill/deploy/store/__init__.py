"""Tables and queries of deploying; functions of a ``Connection``, grouped by what they are about."""
