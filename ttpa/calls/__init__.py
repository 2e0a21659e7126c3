"""Tool calls as text (literals, syntaxes) and as data (schema, six_errors)."""
