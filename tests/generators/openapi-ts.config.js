// By default @hey-api/openapi-ts looks for a tsconfig.json beside its own installation and misses this one.
export default {
  input: "openapi.json",
  output: { path: "hey", module: { extension: ".js" } },
};
