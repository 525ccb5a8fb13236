"""Imported first: the libraries read these switches once."""

from mongars.base.outbound import keep_quiet

keep_quiet()
