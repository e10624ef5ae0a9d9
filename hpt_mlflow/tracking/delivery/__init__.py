"""From a run to MLflow by way of the disk: entries wait in a spool until a courier has delivered them."""
