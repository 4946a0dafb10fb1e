"""The one error that a user can mend: the command lines print it without a traceback."""


class UserError(ValueError):
  """Something given to us cannot be used; the message names it, its value and the fix."""
