Scalar.createApiReference('#app', {
  sources: [
    { title: 'The interface', slug: 'http', url: '/openapi.json', default: true },
    { title: 'The log', slug: 'log', url: '/asyncapi.json' },
  ],
  withDefaultFonts: false,
  telemetry: false,
  hideClientButton: true,
  showDeveloperTools: 'never',
  agent: { disabled: true },
  mcp: { disabled: true },
})
