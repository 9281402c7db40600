"""The report of a run: its data, one page of HTML, the charts."""
