package event

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"
)

// maxKept is the size in bytes of a line whose memory is used again.
const maxKept = 4 << 10

// line appends one event as encoding/json writes a map: keys in order. What is plain is
// written here, which a program that says thousands of things a second can tell.
// It is called with the sink's lock held.
func (w *Writer) line(b []byte, t time.Time, name string, f Fields) ([]byte, error) {
	keys := append(w.sink.keys[:0], "event", "time")
	_, own := f["source"]
	_, with := w.with["source"]
	if w.source != "" || own || with {
		keys = append(keys, "source")
	}
	for k := range f {
		if !everywhere(k) {
			keys = append(keys, k)
		}
	}
	for k := range w.with {
		if _, twice := f[k]; !twice && !everywhere(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	w.sink.keys = keys
	for i, k := range keys {
		if i == 0 {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		var v any
		switch k {
		case "event":
			v = name
		case "time":
			v = t.UTC().Format(time.RFC3339Nano)
		default:
			var ok bool
			if v, ok = f[k]; !ok {
				if v, ok = w.with[k]; !ok {
					v = w.source
				}
			}
		}
		var err error
		if b, err = appendValue(append(appendString(b, k), ':'), v); err != nil {
			return nil, err
		}
	}
	return append(b, '}', '\n'), nil
}

// everywhere are the keys that stand in every line.
func everywhere(key string) bool { return key == "event" || key == "time" || key == "source" }

func appendValue(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return appendString(b, v), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case int:
		return strconv.AppendInt(b, int64(v), 10), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case uint64:
		return strconv.AppendUint(b, v, 10), nil
	case float64:
		if a := math.Abs(v); a == 0 || a >= 1e-6 && a < 1e21 {
			return strconv.AppendFloat(b, v, 'f', -1, 64), nil
		}
	case []string:
		if v != nil {
			b = append(b, '[')
			for i, s := range v {
				if i > 0 {
					b = append(b, ',')
				}
				b = appendString(b, s)
			}
			return append(b, ']'), nil
		}
	}
	more, err := json.Marshal(v)
	return append(b, more...), err
}

// appendString writes a string, by encoding/json where anything in it must be escaped.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...) // a string has no error
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
