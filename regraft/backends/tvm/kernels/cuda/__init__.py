"""Kernel templates in TileLang; imported only in TileLang's own process."""
