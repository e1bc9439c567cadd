package card

import (
	"encoding/json"
	"fmt"
)

// Enrolment is the public record of a first boot on the configuration partition. The
// identity service of the running system adds to what it writes there.
type Enrolment struct {
	Schema   string `json:"schema"` // EnrolmentSchema
	Volume   string `json:"volume"` // LUKS2 UUID
	Release  uint64 `json:"release"`
	Backend  string `json:"backend"`
	Chip     string `json:"chip"`
	Posture  string `json:"posture"`
	Platform string `json:"platform"`
	Escrow   bool   `json:"escrow"`
}

// EnrolmentSchema is the only schema.
const EnrolmentSchema = "portcullis/enrolment/v1"

// Encode returns the JSON of a record, with its schema.
func (e Enrolment) Encode() []byte {
	e.Schema = EnrolmentSchema
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("card: a record of strings cannot be encoded: %v", err))
	}
	return append(b, '\n')
}
