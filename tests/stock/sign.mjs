// Webhooks signed by the providers' own libraries: given a secret, a delivery's id, its body and the time, the headers.

import { webcrypto } from 'node:crypto';

import { sign } from '@octokit/webhooks-methods';
import { createSHA256HMAC } from '@shopify/shopify-api/runtime';
import { Webhook } from 'standardwebhooks';
import Stripe from 'stripe';

import { answer } from './answer.mjs';

// Node 18 has it under another name only, and Shopify's library looks for this one.
globalThis.crypto ??= webcrypto;

await answer({
  async stripe({ secret, body, time_s }) {
    const signature = Stripe.webhooks.generateTestHeaderString({ payload: body, secret, timestamp: time_s });
    return { 'stripe-signature': signature };
  },
  async github({ secret, id, body }) {
    return {
      'x-hub-signature-256': await sign(secret, body),
      'x-github-delivery': id,
      'x-github-event': 'thing.made',
    };
  },
  async shopify({ secret, id, body }) {
    return {
      'x-shopify-hmac-sha256': await createSHA256HMAC(secret, body),
      'x-shopify-webhook-id': id,
      'x-shopify-topic': 'thing.made',
    };
  },
  async standard({ secret, id, body, time_s }) {
    const signature = new Webhook(secret).sign(id, new Date(time_s * 1000), body);
    return { 'webhook-id': id, 'webhook-timestamp': `${time_s}`, 'webhook-signature': signature };
  },
});
