"""Build the page, and its data, that TensorBoard's tab, the HTML report and the report on Weights & Biases share.

`contract` defines the JSON that the page reads, `run_data` collects its data from reports, and `report` writes both to
one HTML file.
"""
