import { keep, recall } from '../lib/kept';
import { server, type Drawing, type Model } from './server';

/** How answers are drawn, kept in this browser. Null: as the model's makers advise. */
interface Settings {
  model: string;
  other: string;
  compare: boolean;
  temperature: number | null;
  topP: number | null;
  maxTokens: number | null;
  seed: number | null;
  system: string;
}

const first: Settings = {
  model: '',
  other: '',
  compare: false,
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  system: '',
};

export const settings = $state<Settings>({ ...first, ...recall<Partial<Settings>>('settings', {}) });
export const models = $state<{ all: Model[] }>({ all: [] });

export function keepSettings(): void {
  keep('settings', settings);
}

export function resetSettings(): void {
  const { model, other, compare } = settings;
  Object.assign(settings, first, { model, other, compare });
  keepSettings();
}

/** Whether this person compares versions now and then; null until the server has said so. */
export const trials = $state<{ compares: boolean | null }>({ compares: null });

export async function askCompares(): Promise<void> {
  trials.compares = await server.compares().catch(() => null);
}

export async function setCompares(to: boolean): Promise<void> {
  await server.setCompares(to);
  trials.compares = to;
}

let asked: Promise<void> | undefined;

/** Learn which models there are, once or anew; one that is gone is not chosen any more. */
export function askModels(anew = false): Promise<void> {
  if (anew) asked = undefined;
  asked ??= ask().catch((error: unknown) => {
    asked = undefined;
    throw error;
  });
  return asked;
}

async function ask(): Promise<void> {
  models.all = await server.models();
  const names = models.all.map((each) => each.id);
  if (!names.includes(settings.model)) settings.model = names[0] ?? '';
  if (!names.includes(settings.other))
    settings.other = names.find((each) => each !== settings.model) ?? settings.model;
}

export function hasTrial(name: string): boolean {
  return models.all.some((each) => each.id === name && each.trial === true);
}

/** Whether another server runs a model: neither its tokens nor its attention can be shown. */
export function isRemote(name: string): boolean {
  return models.all.some((each) => each.id === name && each.remote === true);
}

/** Every answer says whether there is a trial now, so that no question is needed to know it. */
export function setTrial(name: string, to: boolean): void {
  const found = models.all.find((each) => each.id === name);
  if (found) found.trial = to;
}

/** How a model is to be drawn from. */
export function drawing(name: string): Drawing {
  const advised = models.all.find((each) => each.id === name)?.advised;
  return {
    model: name,
    temperature: settings.temperature ?? advised?.temperature ?? 0.8,
    top_p: settings.topP ?? advised?.top_p ?? 0.95,
    max_tokens: settings.maxTokens,
    seed: settings.seed,
  };
}
