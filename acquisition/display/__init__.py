"""The operator's window: a view model without Qt, and widgets over it."""
