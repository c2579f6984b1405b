Scalar.createApiReference('#app', {
  sources: [
    { title: 'HTTP API', slug: 'http', url: '/openapi.json', default: true },
    { title: 'Event log', slug: 'log', url: '/asyncapi.json' },
  ],
  withDefaultFonts: false,
  telemetry: false,
  hideClientButton: true,
  showDeveloperTools: 'never',
  agent: { disabled: true },
  mcp: { disabled: true },
})
