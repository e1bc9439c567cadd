package httpboot

import (
	"strconv"
	"strings"

	"portcullis/images/manifest"
	"portcullis/pxe/session"
)

// names is the whole list of what a URL can mean; there is no filesystem behind it.
var names = map[string]string{ // to the content type
	manifest.UKI:      "application/efi", // UEFI 2.10 §24.7.1: tells an image by its type or suffix
	manifest.Kernel:   "application/octet-stream",
	manifest.Initrd:   "application/octet-stream",
	manifest.Root:     "application/octet-stream",
	manifest.Envelope: "application/json",
	session.Script:    "text/plain; charset=utf-8",
}

// prefix begins every path.
const prefix = "/b/"

// Path returns the path of an artefact of a session; with an empty name the
// base that the PC's own client appends names to.
func Path(sid, name string) string { return prefix + sid + "/" + name }

// split takes a request path apart. It accepts exactly what Path makes.
func split(path string) (sid, name string, ok bool) {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return "", "", false
	}
	sid, name, ok = strings.Cut(rest, "/")
	if !ok || !session.ValidID(sid) {
		return "", "", false
	}
	_, known := names[name]
	return sid, name, known
}

// byteRange is a range of a representation; Whole means that none was asked for.
type byteRange struct {
	Offset, Length int64
	Whole          bool
}

// parseRange reads a Range header (RFC 9110 §14.2) for a representation of
// size bytes. A header that is not understood is ignored, as the RFC asks, and
// the whole is meant. ok is false where it is understood and cannot be
// satisfied; more than one range is refused in the same way, because no boot
// client asks for it.
func parseRange(header string, size int64) (r byteRange, ok bool) {
	whole := byteRange{0, size, true}
	spec, is := strings.CutPrefix(header, "bytes=")
	if !is {
		return whole, true
	}
	if strings.Contains(spec, ",") {
		return byteRange{}, false
	}
	first, last, is := strings.Cut(spec, "-")
	if !is {
		return whole, true
	}
	if first == "" { // the last n bytes
		n, is := number(last)
		if !is {
			return whole, true
		}
		if n == 0 {
			return byteRange{}, false
		}
		n = min(n, size)
		return byteRange{Offset: size - n, Length: n}, true
	}
	from, is := number(first)
	if !is {
		return whole, true
	}
	to := size - 1
	if last != "" {
		n, is := number(last)
		if !is || n < from {
			return whole, true
		}
		to = min(n, size-1)
	}
	if from >= size {
		return byteRange{}, false
	}
	return byteRange{Offset: from, Length: to - from + 1}, true
}

// number reads 1 to 18 decimal digits, which an int64 always holds.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
