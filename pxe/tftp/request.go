package tftp

import (
	"bytes"
	"strings"

	"portcullis/images/manifest"
	"portcullis/pxe/session"
)

// Reasons why a request is not served.
const (
	ReasonMalformed = "tftp-malformed"
	ReasonWrite     = "tftp-write"
	ReasonMode      = "tftp-mode" // not octet: netascii would change bytes
	ReasonName      = "tftp-name" // not a name that this server gives out
	ReasonRate      = "tftp-rate"
	ReasonBusy      = "tftp-busy"   // too many transfers
	ReasonSource    = "tftp-source" // not the leased address
	ReasonPanic     = "tftp-panic"
)

// Packet types and error codes of RFC 1350.
const (
	opRRQ   = 1
	opWRQ   = 2
	opERROR = 5

	codeUndefined = 0
	codeAccess    = 2
)

// maxRequest bounds a request; the longest honest one is under 200 bytes.
const maxRequest = 512

// parseRequest checks a read request and returns it with its option names in
// lower case, as the library compares them (RFC 2347 says that case does not
// matter), or the reason against it.
func parseRequest(b []byte) (normal []byte, reason string) {
	if len(b) < 4 || len(b) > maxRequest || b[0] != 0 {
		return nil, ReasonMalformed
	}
	switch b[1] {
	case opRRQ:
	case opWRQ:
		return nil, ReasonWrite
	default:
		return nil, ReasonMalformed
	}
	if b[len(b)-1] != 0 {
		return nil, ReasonMalformed
	}
	fields := strings.Split(string(b[2:len(b)-1]), "\x00")
	if len(fields) < 2 || len(fields)%2 != 0 {
		return nil, ReasonMalformed
	}
	if !strings.EqualFold(fields[1], "octet") {
		return nil, ReasonMode
	}
	if _, _, ok := split(fields[0]); !ok {
		return nil, ReasonName
	}
	var out bytes.Buffer
	out.Write([]byte{0, opRRQ})
	seen := map[string]bool{}
	for i := 0; i < len(fields); i += 2 {
		name := fields[i]
		if i > 0 {
			// Twice the same option is forbidden by RFC 2347.
			if name = strings.ToLower(name); seen[name] {
				return nil, ReasonMalformed
			}
			seen[name] = true
		}
		out.WriteString(name + "\x00" + fields[i+1] + "\x00")
	}
	return out.Bytes(), ""
}

// split takes a file name apart: `<session>/hpc.efi` and nothing else is one.
// There is no filesystem behind it.
func split(name string) (sid, artefact string, ok bool) {
	sid, artefact, ok = strings.Cut(name, "/")
	if !ok || !session.ValidID(sid) || artefact != manifest.UKI {
		return "", "", false
	}
	return sid, artefact, true
}

// errorPacket makes an ERROR (RFC 1350 §5) with one of our fixed texts.
func errorPacket(code byte, text string) []byte {
	return append(append([]byte{0, opERROR, 0, code}, text...), 0)
}
