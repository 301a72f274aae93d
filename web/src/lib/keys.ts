/** Whether a key belongs to an input method that is composing text. Safari ends the composition before
 *  the key that ended it comes; 229 is that key's number. */
export function composes(event: KeyboardEvent): boolean {
  return event.isComposing || event.keyCode === 229;
}
