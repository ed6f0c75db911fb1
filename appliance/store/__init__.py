"""The store: every fact the appliance keeps, and the only SQL.

`schema` names the tables, one repository module per noun has plain functions over a `Tx`, `Store` runs them:

    store = Store.open(settings.store_url, clock)
    await store.write(lambda tx: proxies.add(tx, ...))     # answered after COMMIT
    await store.read(lambda tx: proxies.by_id(tx, ...))
"""

from appliance.store.statements import Result, Row
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx

__all__ = ["OutboxRow", "Result", "Row", "Store", "Tx"]
