"""One page of HTML about one run or several: read from workdirs, drawn by Plotly, laid out by a template."""
