"""Tests mirror the library; a package so that helpers are found as `tests.house`."""
