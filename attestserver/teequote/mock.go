//go:build mocktee

package teequote

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"
)

// MockMarker is in every program that takes mock evidence, so that a test can look for it.
const MockMarker = "portcullis-mock-tee-evidence-is-accepted"

// fake is the provider of go-configfs-tsm's faketsm, which signs nothing. Programs
// that are built for use do not have it: the build tag is set by a test only.
func init() {
	verifiers["fake"] = func(e Evidence, _ time.Time) (*Claims, error) {
		_, blob, ok := strings.Cut(string(e.Report), "inblob: ")
		data, err := hex.DecodeString(blob)
		if !ok || err != nil || len(data) != 64 {
			return nil, errors.New(MockMarker + ": malformed")
		}
		return &Claims{Data: [64]byte(data), Measurement: sha256.Sum256([]byte(MockMarker))}, nil
	}
}
