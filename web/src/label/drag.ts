/** Dragging by pointer, mouse or finger: a thing is carried over places and let go on one. */

export interface Carrying {
  /** Called while it is carried, with the place below, or null. */
  over: (place: string | null) => void;
  /** Called when it is let go, with the place below, or null. */
  drop: (place: string | null) => void;
}

const ENOUGH = 4;

/** An attachment; places are elements with `data-place`. */
export function carried(what: () => Carrying) {
  return (node: HTMLElement): (() => void) => {
    let from: PointerEvent | null = null;
    let moving = false;

    function below(event: PointerEvent): string | null {
      const found = document.elementsFromPoint(event.clientX, event.clientY);
      const place = found.map((each) => each.closest<HTMLElement>('[data-place]')).find(Boolean);
      return place?.dataset['place'] ?? null;
    }
    function down(event: PointerEvent): void {
      if (event.button !== 0) return;
      from = event;
      node.setPointerCapture(event.pointerId);
    }
    function move(event: PointerEvent): void {
      if (from === null) return;
      const [x, y] = [event.clientX - from.clientX, event.clientY - from.clientY];
      if (!moving && Math.hypot(x, y) < ENOUGH) return;
      moving = true;
      node.classList.add('carried');
      node.style.translate = `${x}px ${y}px`;
      what().over(below(event));
    }
    function up(event: PointerEvent): void {
      const dropped = moving && event.type === 'pointerup';
      from = null;
      moving = false;
      node.classList.remove('carried');
      node.style.translate = '';
      what().over(null);
      if (dropped) what().drop(below(event));
    }
    node.addEventListener('pointerdown', down);
    node.addEventListener('pointermove', move);
    node.addEventListener('pointerup', up);
    node.addEventListener('pointercancel', up);
    return () => {
      node.removeEventListener('pointerdown', down);
      node.removeEventListener('pointermove', move);
      node.removeEventListener('pointerup', up);
      node.removeEventListener('pointercancel', up);
    };
  };
}
