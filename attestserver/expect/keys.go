package expect

import (
	"encoding/hex"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// settle is how long after power-on a machine may still be finding its parts.
const settle = 180 * time.Second

// hwKey names the reference of one machine with one image.
func hwKey(st *protocol.ImageState) string {
	return hex.EncodeToString(st.Image.Digest[:16]) + "." + strings.ReplaceAll(st.MAC, ":", "-")
}
