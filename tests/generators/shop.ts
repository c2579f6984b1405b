// Shared by the programs of both TypeScript generators: names, the token, and checks of answers.

export const [product, order, customer, sale] = ["product", "order", "customer", "sale"].map(
  (kind) => `${kind}-${crypto.randomUUID()}`,
) as [string, string, string, string];
let token = "";

export function assert(fact: unknown, words: string): asserts fact {
  if (!fact) throw new Error(words);
}

// Checks a command's answer and keeps its token for later requests.
export async function sent(answer: Promise<{ data?: { token: string }; error?: unknown }>): Promise<void> {
  token = (await shown(answer)).token;
}

export async function shown<T>(answer: Promise<{ data?: T; error?: unknown }>): Promise<NonNullable<T>> {
  const { data, error } = await answer;
  assert(data, JSON.stringify(error));
  return data;
}

export async function eventually<T>(look: () => Promise<T>, wanted: T): Promise<void> {
  const end = Date.now() + 30_000;
  while ((await look()) !== wanted) {
    assert(Date.now() < end, `it is not ${wanted}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

export const fresh = () => ({ "Consistency-Token": token, Prefer: "wait=10" });
