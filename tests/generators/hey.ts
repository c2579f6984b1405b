// Sells a unit with a client of @hey-api/openapi-ts: node hey.js URL
import { client } from "./hey/client.gen.js";
import * as api from "./hey/sdk.gen.js";
import { assert, customer, eventually, fresh, order, product, sale, sent, shown } from "./shop.js";

client.setConfig({ baseUrl: process.argv[2] ?? "" });
const of = (id: string) => ({ path: { id }, headers: fresh() });
const orderRow = async () => (await shown(api.orderRow(of(order)))).data.status;
const productRow = async () => (await shown(api.productRow(of(product)))).data;
const saleRow = async () => (await shown(api.saleRow(of(sale)))).data;

const body = { name: "Kind of Blue", price_cents: 1177, stock: 10 };
await sent(api.productsRegister({ path: { id: product }, headers: { "If-None-Match": "*" }, body }));
const again = await api.productsRegister({ path: { id: product }, headers: { "If-Match": '"7"' }, body });
assert(again.error?.status === 412, JSON.stringify(again));
const lines = [{ product, quantity: 1, amount_cents: 1177 }];
await sent(api.ordersPlace({ path: { id: order }, body: { customer, lines } }));
await eventually(orderRow, "confirmed");
await sent(api.ordersPay({ path: { id: order }, body: { payment: "p-1", amount_cents: 1177 } }));
assert((await orderRow()) === "paid", "it is paid");
const then = async (query: { version?: number; at?: string }) =>
  (await shown(api.ordersAsOf({ ...of(order), query }))).data.status;
assert((await then({ version: 1 })) === "placed", "it was placed");
assert((await then({ at: new Date().toISOString() })) === "paid", "it is paid by now");
const events = await shown(api.ordersHistory(of(order)));
assert(Array.isArray(events) && events.length === 4, "it has four events");
const page = await shown(api.customersOrdersList(of(customer)));
assert(page.rows[0]?.key === order, "the customer has it");
await eventually(async () => (await productRow()).sold, 1);
const best = () => shown(api.bestSellersList({ query: { limit: 1000 }, headers: fresh() }));
await eventually(async () => (await best()).rows.some((row) => row.key === product), true);

const hour = 3_600_000;
const [opens_at, closes_at] = [-hour, hour].map((by) => new Date(Date.now() + by).toISOString()) as [string, string];
const schedule = { product, opens_at, closes_at, price_cents: 900, units: 5, limit_per_customer: 2 };
await sent(api.salesSchedule({ path: { id: sale }, body: schedule }));
await eventually(async () => (await saleRow()).status, "open");
const claim = (quantity: number) =>
  api.salesClaim({ path: { id: sale }, body: { customer, quantity, order: `${quantity}-of-${sale}` } });
await sent(claim(1));
assert((await saleRow()).left === 4, "four are left");
const over = await claim(2);
assert(over.error?.status === 422 && over.error.rejection === "over_limit", JSON.stringify(over));

const restock = (quantity: number) =>
  JSON.stringify({ aggregate: "products", id: product, command: "restock", data: { quantity } }) + "\n";
const answers = await api.commandsBatch({ body: new Blob([restock(1) + restock(2)]), parseAs: "text" });
const text = String(answers.data);
assert(text.trim().split("\n").every((line) => JSON.parse(line).status === 200), text);
console.log("sold");
