"""How balanced, how sure, how good: statistics, quality, figures."""
