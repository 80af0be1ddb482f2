// `memo` as in preact/compat, which would add a tenth to the size of the page's script.
import { Component, type FunctionComponent, h } from "preact";

// A component that is rendered again only if a property has changed, or a signal that it uses.
export function memo<P extends object>(inner: FunctionComponent<P>) {
  return class extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      const names = Object.keys({ ...this.props, ...next }) as (keyof P)[];
      return names.some((name) => this.props[name] !== next[name]);
    }

    override render() {
      return h(inner, this.props as P);
    }
  };
}
