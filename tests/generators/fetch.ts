// Sells a unit with openapi-fetch and the types of openapi-typescript: node fetch.js URL
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";
import { assert, customer, eventually, fresh, order, product, sale, sent, shown } from "./shop.js";

const client = createClient<paths>({ baseUrl: process.argv[2] ?? "" });
const of = (id: string) => ({ path: { id }, header: fresh() });
const orderRow = async () => (await shown(client.GET("/v1/orders/{id}", { params: of(order) }))).data.status;
const productRow = async () => (await shown(client.GET("/v1/products/{id}", { params: of(product) }))).data;
const saleRow = async () => (await shown(client.GET("/v1/sales/{id}", { params: of(sale) }))).data;

const body = { name: "Kind of Blue", price_cents: 1177, stock: 10 };
const register = "/v1/products/{id}/register";
await sent(client.POST(register, { params: { path: { id: product }, header: { "If-None-Match": "*" } }, body }));
const again = await client.POST(register, { params: { path: { id: product }, header: { "If-Match": '"7"' } }, body });
assert(again.error?.status === 412, JSON.stringify(again));
const lines = [{ product, quantity: 1, amount_cents: 1177 }];
await sent(client.POST("/v1/orders/{id}/place", { params: { path: { id: order } }, body: { customer, lines } }));
await eventually(orderRow, "confirmed");
const payment = { payment: "p-1", amount_cents: 1177 };
await sent(client.POST("/v1/orders/{id}/pay", { params: { path: { id: order } }, body: payment }));
assert((await orderRow()) === "paid", "it is paid");
const then = async (query: { version?: number; at?: string }) =>
  (await shown(client.GET("/v1/orders/{id}/as-of", { params: { ...of(order), query } }))).data.status;
assert((await then({ version: 1 })) === "placed", "it was placed");
assert((await then({ at: new Date().toISOString() })) === "paid", "it is paid by now");
const events = await shown(client.GET("/v1/orders/{id}/history", { params: of(order) }));
assert(Array.isArray(events) && events.length === 4, "it has four events");
const page = await shown(client.GET("/v1/customers/{id}/orders", { params: of(customer) }));
assert(page.rows[0]?.key === order, "the customer has it");
await eventually(async () => (await productRow()).sold, 1);
const best = () => shown(client.GET("/v1/best-sellers", { params: { query: { limit: 1000 }, header: fresh() } }));
await eventually(async () => (await best()).rows.some((row) => row.key === product), true);

const hour = 3_600_000;
const [opens_at, closes_at] = [-hour, hour].map((by) => new Date(Date.now() + by).toISOString()) as [string, string];
const schedule = { product, opens_at, closes_at, price_cents: 900, units: 5, limit_per_customer: 2 };
await sent(client.POST("/v1/sales/{id}/schedule", { params: { path: { id: sale } }, body: schedule }));
await eventually(async () => (await saleRow()).status, "open");
const claim = (quantity: number) =>
  client.POST("/v1/sales/{id}/claim", {
    params: { path: { id: sale } },
    body: { customer, quantity, order: `${quantity}-of-${sale}` },
  });
await sent(claim(1));
assert((await saleRow()).left === 4, "four are left");
const over = await claim(2);
assert(over.error?.status === 422 && over.error.rejection === "over_limit", JSON.stringify(over));

const restock = (quantity: number) =>
  JSON.stringify({ aggregate: "products", id: product, command: "restock", data: { quantity } }) + "\n";
const answers = await client.POST("/v1/commands", {
  body: restock(1) + restock(2),
  bodySerializer: (lines) => lines,
  headers: { "Content-Type": "application/x-ndjson" },
  parseAs: "text",
});
assert(answers.data?.trim().split("\n").every((line) => JSON.parse(line).status === 200), String(answers.data));
console.log("sold");
