/**
 * A matrix of colors on a canvas: rows and columns of any number, a tip for the cell under the pointer or the arrow keys, a cross on cells that
 * are marked. The canvas is drawn anew when the size, the theme or a value changes; 52 layers of 16 experts take under a millisecond.
 */
import { useEffect, useRef, useState } from "preact/hooks";
import type { JSX } from "preact";
import { css, type Rgb } from "../colors.ts";
import { useSettings } from "../words.ts";
import { useWidth } from "./chart.tsx";

export interface HeatmapProps {
  readonly label: string;
  /** Null: no number there. */
  readonly values: readonly (readonly (number | null)[])[];
  readonly color: (value: number) => Rgb;
  readonly marked?: (value: number) => boolean;
  readonly rowName: (row: number) => string;
  readonly columnName: (column: number) => string;
  readonly tip: (value: number | null, row: number, column: number) => string;
  readonly rowTitle: string;
  readonly columnTitle: string;
  readonly selectedRow?: number | null;
  readonly selectedColumn?: number | null;
  readonly onPick?: (row: number, column: number) => void;
  /** Heights of a row in pixels: least and most. */
  readonly rowHeight?: readonly [number, number];
  readonly maxHeight?: number;
  /** Square cells, for matrices. */
  readonly square?: boolean;
  readonly help?: string;
}

const left = 44;
const bottom = 34;
const top = 2;

export function Heatmap(props: HeatmapProps): JSX.Element {
  const { values, color, marked, rowHeight = [9, 26], maxHeight = 520, square = false } = props;
  const { dark } = useSettings();
  const [frame, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [cell, setCell] = useState<{ row: number; column: number } | null>(null);
  const rows = values.length;
  const columns = values.reduce((most, row) => Math.max(most, row.length), 0);
  const available = Math.max(20, width - left - 2);
  const cellWidth = square ? Math.min(available / Math.max(1, columns), 34) : available / Math.max(1, columns);
  const cellHeight = square ? cellWidth : Math.max(rowHeight[0], Math.min(rowHeight[1], maxHeight / Math.max(1, rows)));
  const height = Math.ceil(top + rows * cellHeight + bottom);

  useEffect(() => {
    const element = canvas.current;
    if (element === null || width === 0) return;
    const scale = devicePixelRatio || 1;
    element.width = Math.round(width * scale);
    element.height = Math.round(height * scale);
    const context = element.getContext("2d");
    if (context === null) return;
    context.scale(scale, scale);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(element);
    const [ink, muted, track] = ["--text", "--muted", "--track"].map((name) => style.getPropertyValue(name)) as [string, string, string];
    const gap = cellWidth > 7 && cellHeight > 7 ? 1 : 0;
    for (const [r, row] of values.entries())
      for (const [c, value] of row.entries()) {
        const [x, y] = [left + c * cellWidth, top + r * cellHeight];
        if (value === null) continue;
        const isMarked = marked?.(value) === true;
        // The cross must be seen: a marked cell has the ground's color, whatever its value.
        context.fillStyle = isMarked ? track : css(color(value));
        // Without gaps, cells overlap by a hair, or the panel shines through between them.
        context.fillRect(x, y, cellWidth - gap + (gap === 0 ? 0.6 : 0), cellHeight - gap + (gap === 0 ? 0.6 : 0));
        if (isMarked) {
          const [w, h] = [cellWidth - gap, cellHeight - gap];
          const size = Math.min(w, h, 12) * 0.3;
          context.strokeStyle = ink;
          context.lineWidth = 1.4;
          context.beginPath();
          context.moveTo(x + w / 2 - size, y + h / 2 - size);
          context.lineTo(x + w / 2 + size, y + h / 2 + size);
          context.moveTo(x + w / 2 + size, y + h / 2 - size);
          context.lineTo(x + w / 2 - size, y + h / 2 + size);
          context.stroke();
        }
      }
    context.fillStyle = muted;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const everyRow = Math.max(1, Math.ceil(13 / cellHeight));
    for (let r = 0; r < rows; r += everyRow) context.fillText(props.rowName(r), left - 6, top + (r + 0.5) * cellHeight);
    context.textAlign = "center";
    context.textBaseline = "top";
    const everyColumn = Math.max(1, Math.ceil(34 / cellWidth));
    for (let c = 0; c < columns; c += everyColumn) {
      const x = left + (c + 0.5) * cellWidth;
      // The last names would be cut at the edge.
      if (x + 14 <= width) context.fillText(props.columnName(c), x, top + rows * cellHeight + 4);
    }
    context.fillText(props.columnTitle, left + (columns * cellWidth) / 2, top + rows * cellHeight + 18);
    context.save();
    context.translate(8, top + (rows * cellHeight) / 2);
    context.rotate(-Math.PI / 2);
    if (rows * cellHeight > 40) context.fillText(props.rowTitle, 0, -6);
    context.restore();
    context.strokeStyle = ink;
    context.lineWidth = 1.5;
    const { selectedRow, selectedColumn } = props;
    if (selectedRow !== null && selectedRow !== undefined && selectedRow >= 0)
      context.strokeRect(left - 1.5, top + selectedRow * cellHeight - 1.5, columns * cellWidth + 2, cellHeight + 2);
    if (selectedColumn !== null && selectedColumn !== undefined && selectedColumn >= 0) {
      const x = left + (selectedColumn + 0.5) * cellWidth;
      context.beginPath();
      context.moveTo(x, top);
      context.lineTo(x, top + rows * cellHeight);
      context.stroke();
    }
    if (cell !== null) {
      context.lineWidth = 2;
      context.strokeRect(left + cell.column * cellWidth - 1, top + cell.row * cellHeight - 1, cellWidth + 1, cellHeight + 1);
    }
  }, [values, width, height, cell, dark, props.selectedRow, props.selectedColumn, props.columnTitle, props.rowTitle]);

  const cellAt = (event: { readonly clientX: number; readonly clientY: number }): { row: number; column: number } | null => {
    const box = canvas.current?.getBoundingClientRect();
    if (box === undefined) return null;
    const column = Math.floor((event.clientX - box.left - left) / cellWidth);
    const row = Math.floor((event.clientY - box.top - top) / cellHeight);
    return row >= 0 && row < rows && column >= 0 && column < columns ? { row, column } : null;
  };
  const onKey = (event: KeyboardEvent): void => {
    const moves: Record<string, readonly [number, number]> = {
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    };
    const move = moves[event.key];
    if (move !== undefined) {
      event.preventDefault();
      const from = cell ?? { row: Math.max(0, props.selectedRow ?? 0) - move[0], column: -move[1] };
      setCell({
        row: Math.min(rows - 1, Math.max(0, from.row + move[0])),
        column: Math.min(columns - 1, Math.max(0, from.column + move[1])),
      });
    } else if (event.key === "Escape") setCell(null);
    else if ((event.key === "Enter" || event.key === " ") && cell !== null) {
      event.preventDefault();
      props.onPick?.(cell.row, cell.column);
    }
  };
  const value = cell === null ? null : (values[cell.row]?.[cell.column] ?? null);
  const tipX = cell === null ? 0 : left + (cell.column + 0.5) * cellWidth;
  return (
    <div ref={frame} class="heatmap">
      {width > 0 && (
        <canvas
          ref={canvas}
          role="application"
          aria-label={`${props.label}. ${props.help ?? ""}`}
          tabIndex={0}
          style={{ width: `${width}px`, height: `${height}px`, cursor: props.onPick === undefined ? "crosshair" : "pointer" }}
          onPointerMove={(event) => setCell(cellAt(event))}
          onPointerLeave={() => setCell(null)}
          onBlur={() => setCell(null)}
          onKeyDown={onKey}
          onClick={(event) => {
            const picked = cellAt(event);
            if (picked !== null) props.onPick?.(picked.row, picked.column);
          }}
        />
      )}
      {cell !== null && (
        <div
          class="tip"
          role="status"
          data-side={tipX > width / 2 ? "left" : "right"}
          style={{ left: `${tipX}px`, top: `${Math.min(height - bottom - 30, top + (cell.row + 1) * cellHeight + 4)}px` }}
        >
          {props.tip(value, cell.row, cell.column)}
        </div>
      )}
    </div>
  );
}

/** A bar of colors with names below. */
export function Scale({
  color,
  stops,
  label,
}: {
  readonly color: (at: number) => Rgb;
  readonly stops: readonly { readonly at: number; readonly name: string }[];
  readonly label: string;
}): JSX.Element {
  const { dark } = useSettings();
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (context === null || context === undefined) return;
    for (let i = 0; i < 160; i++) {
      context.fillStyle = css(color(i / 159));
      context.fillRect(i, 0, 1, 8);
    }
  }, [dark, color]);
  return (
    <div class="scale">
      <canvas ref={canvas} width={160} height={8} role="img" aria-label={label} />
      <div aria-hidden="true">
        {stops.map(({ at, name }) => (
          <span key={name} style={{ left: `${100 * at}%` }}>
            {name}
          </span>
        ))}
      </div>
    </div>
  );
}
