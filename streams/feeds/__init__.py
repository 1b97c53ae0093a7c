"""The only readers of our own topics: parameters, marks and journals, for every role and every tool."""
