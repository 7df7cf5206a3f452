"""The data and the page of the views: TensorBoard's tab, the HTML report and the report on Weights & Biases are one.

`contract` defines the JSON that the page reads, `run_data` collects it from reports, `report` makes one file of it.
"""
