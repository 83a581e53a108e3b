package diskdiff

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// Text is bytes from a disk that are text as a rule. In JSON they are a string if they are UTF-8, and else "0s" and
// their base64, as getfattr prints values; text that begins with 0s is in base64 too.
type Text string

// MarshalJSON implements json.Marshaler.
func (t Text) MarshalJSON() ([]byte, error) { return json.Marshal(t.encoded()) }

func (t Text) encoded() string {
	if utf8.ValidString(string(t)) && !strings.HasPrefix(string(t), "0s") {
		return string(t)
	}
	return "0s" + base64.StdEncoding.EncodeToString([]byte(t))
}
