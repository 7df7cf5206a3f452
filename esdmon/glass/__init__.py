"""Build the page that TensorBoard's tab, the HTML report and the report on Weights & Biases share, and its data.

`contract` defines the JSON that the page reads, `run_data` collects it from reports, `report` makes one file of it.
"""
