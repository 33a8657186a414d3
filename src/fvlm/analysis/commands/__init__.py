"""Commands for a user's own points and curves: one module each, which reads files, calls the library and writes one."""
